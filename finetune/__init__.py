"""Fine-tuning on transformers, peft and trl: tasks × methods, exact losses, artefacts an app can load."""
