"""What the server does, whoever asks for it: no HTTP here."""
