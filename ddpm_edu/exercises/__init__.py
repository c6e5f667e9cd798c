"""The exercises: nb00.py holds those of notebook 00, and so on. All notebooks."""
