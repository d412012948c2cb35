"""Classical structure-based localization as a plugin of reloc."""
