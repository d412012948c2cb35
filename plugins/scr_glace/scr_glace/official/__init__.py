"""Files of the published programs: weights, heads in and out."""
