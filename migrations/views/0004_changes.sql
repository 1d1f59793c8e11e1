-- A change names some hundred keys. To compress them cost more than all else of writing it down, and each reader undid
-- it; none stays for longer than minutes.
ALTER TABLE views.changes ALTER COLUMN keys SET STORAGE EXTERNAL;
