"""The SQL side of the record: tables, files, migrations and queries. Its interface is `kwbench.record.store.Store`."""
