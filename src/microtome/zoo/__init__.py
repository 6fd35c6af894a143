"""Models whose mechanism is known, and the calibration of every method on them."""
