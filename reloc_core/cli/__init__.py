"""The command line, `reloc VERB ...`. Modules of verbs are imported when their verb runs."""
