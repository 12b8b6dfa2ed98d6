"""How results look: terminal (rich), SVG figures, the HTML report. Sees records, never a tensor."""
