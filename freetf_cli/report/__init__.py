"""Reports: blocks of plain data, and the renderers that show them in a terminal, on a page, in a picture."""
