"""From posed images to a field and its anchors."""
