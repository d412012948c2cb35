"""What both readouts do with landmarks."""
