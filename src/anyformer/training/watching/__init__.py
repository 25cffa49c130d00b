"""What people watch of a run: the display, trackers, samples, and the report."""
