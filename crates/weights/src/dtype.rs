use half::{bf16, f16};

/// Number types of safetensors files that are told apart here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum DType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    F8E4m3,
    F8E5m2,
}

impl DType {
    const ALL: [Self; 15] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::F8E4m3,
        Self::F8E5m2,
    ];

    /// The name in the file's header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one number.
    pub const fn num_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8E4m3 | Self::F8E5m2 => 1,
        }
    }

    /// Whether `load_f32` can read it.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The types that weights can be saved in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits, exact.
    #[default]
    F32,
    /// 16 bits with float32's range and 8 bits of precision.
    Bf16,
    /// 16 bits with 11 bits of precision and values up to 65504.
    F16,
}

impl FloatType {
    /// The type in the file.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
            Self::F16 => DType::F16,
        }
    }
}

impl std::str::FromStr for FloatType {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(format!("expected f32, bf16 or f16, found {word:?}")),
        }
    }
}

/// Appends the little-endian numbers in `bytes`; `false` when `dtype` is no float type.
pub(crate) fn decode_f32(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    fn each<const W: usize>(bytes: &[u8], out: &mut Vec<f32>, read: fn([u8; W]) -> f32) {
        let (chunks, _) = bytes.as_chunks::<W>();
        out.extend(chunks.iter().map(|&chunk| read(chunk)));
    }
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::Bf16 => each(bytes, out, |chunk| bf16::from_le_bytes(chunk).to_f32()),
        DType::F16 => each(bytes, out, |chunk| f16::from_le_bytes(chunk).to_f32()),
        DType::F64 => each(bytes, out, |chunk| f64::from_le_bytes(chunk) as f32),
        _ => return false,
    }
    true
}

/// Appends `values` as little-endian numbers. Rounds to nearest, ties to even.
pub(crate) fn encode_f32(float: FloatType, values: &[f32], out: &mut Vec<u8>) {
    match float {
        FloatType::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        FloatType::Bf16 => out.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        FloatType::F16 => out.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
    }
}
