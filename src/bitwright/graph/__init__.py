"""The one in-memory model: an `onnx_ir.Model`, opened, checked, normalised and cut into regions.

Nothing in this room knows a word of quantization.
"""
