"""Plain modules and functions that know no model: positions, masks, attention, caches, norms."""
