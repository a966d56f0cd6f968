"""The study of gradient estimators: their bias, variance and signal-to-noise ratio, measured and in theory."""
