"""What is learnt from bare texts. Knows no trainer."""
