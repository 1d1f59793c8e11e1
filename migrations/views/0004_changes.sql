-- A change names some hundred keys. To compress them cost more than all else of writing it down, and made them no
-- shorter.
ALTER TABLE views.changes ALTER COLUMN keys SET STORAGE EXTERNAL;
