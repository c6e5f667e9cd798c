"""Three entries of ours: plain.py, quick.py, few.py. Notebook 18."""
