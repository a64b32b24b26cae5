"""Tables, figures and pages from run folders alone; no torch needed."""
