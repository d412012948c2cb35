"""Beyond the paper: matched cells and triangulated depth as edge features, alignment per edge."""
