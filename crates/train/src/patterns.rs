//! Patterns over the paths of parameters and layers, as recipes name them.

use regex::Regex;

/// Whole parts of a path, wherever they stand in it; `*` stands for anything. `embed_tokens`, `layers.3`, `*.self_attn.*` and
/// `layers.*.mlp` are patterns; `layers.3` doesn't fit `layers.30`.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// From its text.
    ///
    /// # Errors
    /// When it is empty, or far longer than any path.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if text.trim_matches(['*', '.']).is_empty() && !text.contains('*') {
            return Err(format!("expected a part of a parameter's path, found {text:?}"));
        }
        let anything: Vec<String> = text.split('*').map(regex::escape).collect();
        let regex = Regex::new(&format!(r"(?:^|\.){}(?:\.|$)", anything.join(".*"))).map_err(|error| error.to_string())?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Several.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn all(texts: &[String]) -> Result<Vec<Self>, String> {
        texts.iter().map(|text| Self::new(text)).collect()
    }

    /// As it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it fits a path.
    pub(crate) fn fits(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }

    /// The path with the parts that are most like the pattern.
    pub(crate) fn nearest<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let wanted = self.text.trim_matches(['*', '.']);
        let num_parts = wanted.split('.').count();
        let likeness = |path: &str| {
            let parts: Vec<&str> = path.split('.').collect();
            let windows = parts.windows(num_parts.min(parts.len()));
            windows.map(|window| strsim::jaro_winkler(&window.join("."), wanted)).fold(0.0, f64::max)
        };
        // The first of equals, which is the shallowest layer.
        paths
            .map(|path| (likeness(path), path))
            .reduce(|best, other| if other.0 > best.0 { other } else { best })
            .map(|best| best.1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use super::*;

    #[test]
    fn patterns_are_whole_parts_of_paths() {
        let fits = |pattern: &str, path: &str| Pattern::new(pattern).unwrap().fits(path);
        let weight = "showo.model.layers.3.self_attn.q_proj.weight";
        for pattern in
            ["showo", "layers.3", "q_proj", "*.self_attn.*", "layers.*.q_proj", "q_*", "*bias*", "*", "q_proj.weight", weight]
        {
            assert_eq!(fits(pattern, weight), pattern != "*bias*", "{pattern}");
        }
        assert!(!fits("layers.3", "showo.model.layers.30.mlp.fc1.weight"));
        assert!(!fits("attn", weight) && fits("*attn", weight));
        assert!(!fits("a+b", "aab.weight"), "what means something to regular expressions means itself");
        assert!(Pattern::new("").is_err() && Pattern::new(".").is_err());
    }

    #[test]
    fn the_nearest_path_has_the_likest_parts() {
        let paths = [
            "showo.model.embed_tokens.weight",
            "showo.model.layers.0.mlp.fc1.weight",
            "showo.model.layers.0.self_attn.k_proj.bias",
        ];
        let nearest = |pattern: &str| Pattern::new(pattern).unwrap().nearest(paths.into_iter()).unwrap();
        assert_eq!(nearest("embed_token"), paths[0]);
        assert_eq!(nearest("*.self_atn.*"), paths[2]);
        assert_eq!(nearest("mpl.fc1"), paths[1]);
    }
}
