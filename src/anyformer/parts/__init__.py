"""Plain modules and functions that know no model: positions, masks, attention, kernels, caches, feed-forwards, norms."""
