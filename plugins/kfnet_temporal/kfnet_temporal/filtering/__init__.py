"""The Kalman filter over scene coordinates and what it needs to know; no networks."""
