"""The values that cross rooms: what is quantized and how (`Plan`), and what calibration found (`Encoding`)."""
