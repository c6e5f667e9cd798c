"""Handing the notebooks out to a class, collecting them, grading them. All notebooks."""
