"""What is measured of pictures, and under which protocol."""
