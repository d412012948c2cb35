"""Scene coordinate regression with global encodings (GLACE) and ACE, as a plugin of reloc."""
