"""`reloc serve`: maps behind HTTP. Needs the extra `reloc[serve]`."""
