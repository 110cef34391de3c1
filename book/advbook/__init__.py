"""What knows studies, chapters and pages: the book on top of advlib."""
