"""What images and features go through: encoders, global descriptors, the head."""
