"""What every run has: proof, pictures, figures, interruption."""
