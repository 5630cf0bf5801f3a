"""Number formats: what a code stands for. One file a format; pure tensors, no model."""

from __future__ import annotations

from bitwright.lookup import Row

FORMATS: dict[str, Row] = {
    "affine": Row("bitwright.formats.affine:Affine", "integers of 1 to 16 bits, x = scale * (code - zero point)"),
    "pow2": Row("bitwright.formats.pow2:PowerOfTwo", "affine integers whose scale is a power of two"),
    "log2": Row("bitwright.formats.log2:Log2", "powers of two and zero, times one scale a row"),
    "apot": Row("bitwright.formats.apot:APoT", "sums of powers of two, times one scale a row"),
    "codebook": Row("bitwright.formats.codebook:Codebook", "a fitted table of int8 levels, times one scale a row"),
    "binary": Row("bitwright.formats.binary:Binary", "-alpha and +alpha, one alpha a row"),
    "ternary": Row("bitwright.formats.ternary:Ternary", "-alpha, 0 and +alpha, one alpha a row"),
}
