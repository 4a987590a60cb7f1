"""Files in and out: images, b values, labels, tables and netCDF, each checked as it is read."""
