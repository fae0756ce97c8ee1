-- Rows of two tables, with columns of varying length behind and before the one that is read; written by one
-- and by many, to pages that the log holds whole and to others, and to places that are used again.
CREATE TABLE behind (id int, tenant int, note text, flag bool);
CREATE TABLE before (note text, flag bool, id smallint, tenant int, more text);
CHECKPOINT;
INSERT INTO behind SELECT g, g % 7, repeat('x', g % 90), g % 2 = 0 FROM generate_series(1, 3000) g;
INSERT INTO before SELECT CASE WHEN g % 4 > 0 THEN repeat('y', g % 200) END, g % 3 = 0, g, g % 7,
    CASE WHEN g % 5 > 0 THEN md5(g::text) END FROM generate_series(1, 3000) g;
COPY behind (id, tenant) FROM PROGRAM 'for i in $(seq 4000 4500); do printf "%s\t%s\n" $i 3; done';
COPY before (id, tenant) FROM PROGRAM 'for i in $(seq 4000 4500); do printf "%s\t%s\n" $i 4; done';
UPDATE before SET more = 'changed' WHERE id % 5 = 0;
UPDATE behind SET note = 'changed' WHERE id % 5 = 0;
UPDATE behind SET tenant = tenant + 1 WHERE id % 11 = 0;
UPDATE behind SET tenant = 300 WHERE id % 13 = 0;
CHECKPOINT;
UPDATE behind SET tenant = 301 WHERE id % 26 = 0;
UPDATE behind SET flag = NULL, note = NULL WHERE id % 9 = 0;
UPDATE before SET flag = NOT flag WHERE id % 6 = 0;
DELETE FROM behind WHERE id % 17 = 0;
DELETE FROM before WHERE id % 8 = 0;
VACUUM behind;
VACUUM before;
CHECKPOINT;
INSERT INTO behind SELECT g, g % 5, 'again', false FROM generate_series(5000, 5400) g;
INSERT INTO before SELECT repeat('z', g % 50), true, g, g % 5, NULL FROM generate_series(5000, 5400) g;
COPY before (id, tenant) FROM PROGRAM 'for i in $(seq 6000 6300); do printf "%s\t%s\n" $i 5; done';
DELETE FROM before WHERE tenant = 5 AND id % 2 = 0;
