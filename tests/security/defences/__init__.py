"""That the defences of docs/threat-model.md matter: each is switched off, and a test must notice."""
