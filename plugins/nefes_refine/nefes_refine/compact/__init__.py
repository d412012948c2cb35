"""The small regressor on frozen features."""
