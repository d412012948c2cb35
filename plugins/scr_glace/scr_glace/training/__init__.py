"""Mapping: samples, targets, loss, schedule, and the trainer that `mapper` puts them together for."""
