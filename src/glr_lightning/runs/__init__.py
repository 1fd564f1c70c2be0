"""Run folders and the machine that they were made on."""
