"""What a rank of a layout would hold, send and compute, told without any of its devices."""
