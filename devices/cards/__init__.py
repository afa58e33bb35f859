"""Device cards, one TOML file a board; read by `devices.card`."""
