//! Measures the grammar on a face set: `coverage FOLDER [SPLIT] [--errors]`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;

use unif2ace_data::grammar::{asked, caption_claims, paraphrase, parse_answer, parse_caption, questions};
use unif2ace_data::{MajorityBaseline, Schema, load_prompts, load_split};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let errors = args.iter().any(|arg| arg == "--errors");
    let split = args.get(1).filter(|arg| !arg.starts_with('-')).map_or("test", String::as_str);
    let samples = load_split(&args[0], split, 0).unwrap().samples;
    captions(&samples, errors);
    paraphrases(&samples, errors);
    answers(&samples, errors);
    own_questions(&samples, errors);
    understood(&samples, errors);
    users_prompts(errors);
    let train = load_split(&args[0], "train", 0).unwrap().samples;
    let baseline = MajorityBaseline::fit(train.iter().map(|sample| &sample.record));
    let questions: Vec<_> = samples.iter().flat_map(|sample| &sample.record.vqa).collect();
    for kind in ["appearance", "action", "emotion", ""] {
        let asked: Vec<_> = questions.iter().filter(|vqa| kind.is_empty() || vqa.kind == kind).collect();
        let right = asked.iter().filter(|vqa| baseline.answer(&vqa.question) == Some(&vqa.short)).count();
        let kind = if kind.is_empty() { "all" } else { kind };
        println!("majority baseline, {kind}: {:.4} of {}", right as f64 / asked.len() as f64, asked.len());
    }
}

/// Own questions: their answers must parse, and their share of yes.
fn own_questions(samples: &[unif2ace_data::Sample], errors: bool) {
    let (mut right, mut count, mut yes, mut no) = (0usize, 0usize, 0usize, 0usize);
    let mut agree = (0usize, 0usize);
    for (index, sample) in samples.iter().enumerate() {
        for vqa in questions(&sample.record, index as u64, 12) {
            count += 1;
            yes += usize::from(vqa.short == "yes");
            no += usize::from(vqa.short == "no");
            let short = parse_answer(&vqa.question, &vqa.answer);
            if short.as_deref() == Some(&vqa.short) {
                right += 1;
            } else if errors {
                println!("{short:?} for {vqa:?}");
            }
            if let Some(known) = sample.record.vqa.iter().find(|known| known.question == vqa.question) {
                agree.1 += 1;
                agree.0 += usize::from(known.short == vqa.short);
                if errors && known.short != vqa.short {
                    println!("{known:?} but {vqa:?}");
                }
            }
            if errors && index < 6 {
                println!("  ? {} | {} | {}", vqa.question, vqa.answer, vqa.short);
            }
        }
    }
    println!(
        "own questions {count}: recovered {:.4}, yes {yes}, no {no}; same as the set's where the set asks the same {}/{}",
        right as f64 / count as f64,
        agree.0,
        agree.1
    );
}

/// The set's own answers must give the set's own short answers.
fn answers(samples: &[unif2ace_data::Sample], errors: bool) {
    let (mut right, mut count) = (0usize, 0usize);
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    for vqa in samples.iter().flat_map(|sample| &sample.record.vqa) {
        count += 1;
        let short = parse_answer(&vqa.question, &vqa.answer);
        if short.as_deref() == Some(&vqa.short) {
            right += 1;
        } else {
            *shown.entry(format!("{short:?} for {} : {} {}", vqa.short, vqa.question, vqa.answer)).or_default() += 1;
        }
    }
    println!("answers {count}: short answer recovered {:.4}", right as f64 / count as f64);
    if errors {
        for (line, n) in shown.iter().take(40) {
            println!("{n:5} {line}");
        }
    }
}

/// Paraphrases must be read back: everything they state, and nothing that is false.
fn paraphrases(samples: &[unif2ace_data::Sample], errors: bool) {
    let (mut count, mut stated, mut missed, mut wrong, mut extra, mut words) = (0usize, 0usize, 0usize, 0usize, 0usize, 0usize);
    let mut distinct = std::collections::HashSet::new();
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    for (index, sample) in samples.iter().enumerate() {
        for seed in 0..4u64 {
            let caption = paraphrase(&sample.record, index as u64 * 4 + seed);
            if errors && index < 30 {
                println!("  > {}", caption.text);
            }
            count += 1;
            words += caption.text.split(' ').count();
            stated += caption.claims.len();
            let read = caption_claims(&caption.text);
            for claim in &caption.claims {
                if !read.iter().any(|known| known.head == claim.head && known.accepted.iter().all(|value| claim.accepts(*value)))
                {
                    missed += 1;
                    let n = shown.entry(format!("MISSED {} {:?}", claim.attribute, claim.values())).or_default();
                    *n += 1;
                    if errors && *n == 1 {
                        println!("MISSED {} {:?}: {}", claim.attribute, claim.values(), caption.text);
                    }
                }
            }
            for claim in &read {
                let attribute = Schema::get().head(claim.head).unwrap();
                let holds = attribute.of(&sample.record).is_some_and(|value| claim.accepts(value));
                wrong += usize::from(!holds);
                extra += usize::from(!caption.claims.iter().any(|known| known.head == claim.head));
                if !holds {
                    let n = shown.entry(format!("WRONG {} {:?}", claim.attribute, claim.values())).or_default();
                    *n += 1;
                    if errors && *n == 1 {
                        println!("WRONG {} {:?}: {}", claim.attribute, claim.values(), caption.text);
                    }
                }
            }
            distinct.insert(caption.text);
        }
    }
    println!(
        "paraphrases {count}, distinct {}: {:.1} words, {:.2} attributes stated, not read back {missed}, read wrongly {wrong}, read beside {extra}",
        distinct.len(),
        words as f64 / count as f64,
        stated as f64 / count as f64
    );
}

fn captions(samples: &[unif2ace_data::Sample], errors: bool) {
    let (mut stated, mut exact, mut right, mut unclaimable, mut count) = (0usize, 0usize, 0usize, 0usize, 0usize);
    let mut wrong: BTreeMap<String, usize> = BTreeMap::new();
    let mut histogram: BTreeMap<usize, usize> = BTreeMap::new();
    for sample in samples {
        for caption in &sample.record.captions {
            let claims = caption_claims(caption);
            exact += parse_caption(caption).len();
            count += 1;
            *histogram.entry(claims.len()).or_default() += 1;
            for claim in claims {
                stated += 1;
                let attribute = Schema::get().head(claim.head).unwrap();
                let truth = attribute.of(&sample.record).map_or("?", |value| attribute.values[value as usize]);
                let holds = attribute.of(&sample.record).is_some_and(|value| claim.accepts(value));
                right += usize::from(holds);
                unclaimable += usize::from(claim.holds(&sample.record).is_none());
                if !holds || claim.holds(&sample.record).is_none() {
                    let key = format!(
                        "{} {} said {:?} true {truth}",
                        if holds { "hidden" } else { "WRONG" },
                        claim.attribute,
                        claim.values()
                    );
                    let first = !wrong.contains_key(&key);
                    *wrong.entry(key.clone()).or_default() += 1;
                    if errors && first {
                        println!("{key}\n    {} {caption}", sample.key);
                    }
                }
            }
        }
    }
    println!(
        "captions {count}: attributes recovered {:.2} a caption ({:.2} to one value), precision {:.4}, of them not claimable {unclaimable}",
        stated as f64 / count as f64,
        exact as f64 / count as f64,
        right as f64 / stated as f64
    );
    println!("{histogram:?}");
    if errors {
        let mut wrong: Vec<_> = wrong.into_iter().collect();
        wrong.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        for (key, n) in wrong.iter().take(40) {
            println!("{n:5} {key}");
        }
    }
}

/// Questions must be understood: the record's answer is the set's short answer.
fn understood(samples: &[unif2ace_data::Sample], errors: bool) {
    let (mut count, mut right) = (0usize, 0usize);
    let mut wrong: BTreeMap<String, usize> = BTreeMap::new();
    for sample in samples {
        for vqa in &sample.record.vqa {
            count += 1;
            let what = asked(&vqa.question);
            let answer = what.as_ref().and_then(|what| what.answer(&sample.record));
            if answer.as_deref() == Some(vqa.short.as_str()) {
                right += 1;
            } else {
                let key = what.map_or("?".into(), |what| what.key());
                *wrong.entry(format!("{} [{key}] short {:?} read {answer:?}", vqa.question, vqa.short)).or_default() += 1;
            }
        }
    }
    println!("questions {count}: understood {:.4}", right as f64 / count as f64);
    if errors {
        let mut wrong: Vec<_> = wrong.into_iter().collect();
        wrong.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        for (key, n) in wrong.iter().take(40) {
            println!("{n:5} {key}");
        }
    }
}

/// How far the caption reader reads users' prompts as a person does.
fn users_prompts(errors: bool) {
    let prompts = load_prompts("eval/prompts40.json").unwrap();
    let (mut labelled, mut read, mut against) = (0usize, 0usize, 0usize);
    for prompt in &prompts {
        let claims = caption_claims(&prompt.text);
        for label in &prompt.claims {
            labelled += 1;
            match claims.iter().find(|claim| claim.head == label.head) {
                Some(claim) if claim.accepted.iter().any(|&value| label.accepts(value)) => read += 1,
                other => {
                    against += usize::from(other.is_some());
                    if errors {
                        println!(
                            "{}: {} {:?}, read {:?}",
                            prompt.text,
                            label.attribute,
                            label.values(),
                            other.map(|claim| claim.values())
                        );
                    }
                }
            }
        }
    }
    println!("prompts {}: {labelled} attributes labelled, {read} read the same way, {against} read otherwise", prompts.len());
}
