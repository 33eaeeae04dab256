"""The server over HTTP: it decodes, calls services, encodes. No SQL here."""
