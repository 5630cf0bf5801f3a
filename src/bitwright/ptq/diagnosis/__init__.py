"""Where the error of a quantized network comes from: scans with single quantizers on or off, and looks at layers."""
