"""One-operator models, float and int8, whose kernels are timed for a profile."""
