"""The exercises of each notebook: nb00.py holds those of notebook 00, and so on."""
