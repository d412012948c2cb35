"""The published method with narrow networks on frozen XFeat features, for two cores without a GPU."""
