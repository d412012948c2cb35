"""Neural feature synthesis (NeFeS): a feature field, a pose regressor and pose refinement."""
