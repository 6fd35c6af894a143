BEGIN TRANSACTION;
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE claim (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"key" VARCHAR(16) NOT NULL, 
	study INTEGER NOT NULL, 
	person VARCHAR(200) NOT NULL, 
	statement TEXT NOT NULL, 
	about TEXT NOT NULL, 
	made_at FLOAT NOT NULL, 
	after_run INTEGER NOT NULL, 
	withdrawn_at FLOAT, 
	why_withdrawn TEXT NOT NULL, 
	CONSTRAINT uq_claim_key UNIQUE ("key"), 
	CONSTRAINT fk_claim_study FOREIGN KEY(study) REFERENCES study (number), 
	CONSTRAINT fk_claim_person FOREIGN KEY(person) REFERENCES person (name)
);
INSERT INTO "claim" VALUES(1,'cccccccccccccccc',1,'ada','toys add one','{}',1790000010.0,5,NULL,'');
CREATE TABLE claim_text (
	claim INTEGER NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	place INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	CONSTRAINT pk_claim_text PRIMARY KEY (claim, role, place), 
	CONSTRAINT fk_claim_text_claim FOREIGN KEY(claim) REFERENCES claim (number)
);
INSERT INTO "claim_text" VALUES(1,'alternative',0,'chance',1790000010.0);
INSERT INTO "claim_text" VALUES(1,'falsifier',0,'another value',1790000010.0);
CREATE TABLE control (
	run INTEGER NOT NULL, 
	name VARCHAR(80) NOT NULL, 
	mandatory BOOLEAN NOT NULL, 
	passed BOOLEAN, 
	gates BOOLEAN NOT NULL, 
	rules_out TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	expected TEXT NOT NULL, 
	observed TEXT NOT NULL, 
	n INTEGER, 
	CONSTRAINT pk_control PRIMARY KEY (run, name), 
	CONSTRAINT fk_control_run FOREIGN KEY(run) REFERENCES run (number)
);
INSERT INTO "control" VALUES(1,'identity',1,1,0,'a wrong patch','','"no change"','0.0',1);
INSERT INTO "control" VALUES(3,'identity',1,1,0,'a wrong patch','','"no change"','0.0',1);
CREATE TABLE evidence (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	claim INTEGER NOT NULL, 
	run INTEGER, 
	prediction INTEGER, 
	weight VARCHAR(16) NOT NULL, 
	supports BOOLEAN NOT NULL, 
	post_hoc BOOLEAN NOT NULL, 
	person VARCHAR(200) NOT NULL, 
	note TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	CONSTRAINT fk_evidence_claim FOREIGN KEY(claim) REFERENCES claim (number), 
	CONSTRAINT fk_evidence_run FOREIGN KEY(run) REFERENCES run (number), 
	CONSTRAINT fk_evidence_prediction FOREIGN KEY(prediction) REFERENCES prediction (number), 
	CONSTRAINT fk_evidence_person FOREIGN KEY(person) REFERENCES person (name)
);
INSERT INTO "evidence" VALUES(1,1,1,NULL,'strong',1,1,'ada','',1790000010.0);
INSERT INTO "evidence" VALUES(2,1,NULL,1,'sanity',1,0,'ada','',1790000010.0);
CREATE TABLE material (
	hash VARCHAR(64) NOT NULL, 
	kind VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	recipe TEXT, 
	seen_at FLOAT NOT NULL, 
	CONSTRAINT pk_material PRIMARY KEY (hash)
);
CREATE TABLE meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_meta PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('id','b47299b64296a060');
INSERT INTO "meta" VALUES('made_at','1795848867.3960974');
CREATE TABLE model (
	hash VARCHAR(64) NOT NULL, 
	name TEXT NOT NULL, 
	family TEXT NOT NULL, 
	card TEXT NOT NULL, 
	recipe TEXT, 
	certificate TEXT, 
	seen_at FLOAT NOT NULL, 
	CONSTRAINT pk_model PRIMARY KEY (hash)
);
INSERT INTO "model" VALUES('dcba','toy','toys','a toy',NULL,NULL,1.79584886756851816176e+09);
CREATE TABLE page (
	path VARCHAR(500) NOT NULL, 
	kind VARCHAR(40) NOT NULL, 
	title TEXT NOT NULL, 
	dated FLOAT, 
	digest VARCHAR(32) NOT NULL, 
	fields TEXT NOT NULL, 
	problems TEXT NOT NULL, 
	indexed_at FLOAT NOT NULL, 
	CONSTRAINT pk_page PRIMARY KEY (path)
);
INSERT INTO "page" VALUES('notebook/log.md','log','Log',NULL,'00000000000000000000000000000000','{}','[]',1790000011.0);
CREATE TABLE person (
	name VARCHAR(200) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	since FLOAT NOT NULL, 
	CONSTRAINT pk_person PRIMARY KEY (name)
);
INSERT INTO "person" VALUES('ada','person',1.79584886741265630722e+09);
CREATE TABLE prediction (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"key" VARCHAR(16) NOT NULL, 
	study INTEGER NOT NULL, 
	person VARCHAR(200) NOT NULL, 
	statement TEXT NOT NULL, 
	probability FLOAT NOT NULL, 
	about TEXT NOT NULL, 
	holds TEXT, 
	made_at FLOAT NOT NULL, 
	after_run INTEGER NOT NULL, 
	post_hoc BOOLEAN NOT NULL, 
	why_post_hoc TEXT NOT NULL, 
	state VARCHAR(12) NOT NULL, 
	run INTEGER, 
	observed TEXT, 
	reason TEXT NOT NULL, 
	resolved_by VARCHAR(200), 
	resolved_at FLOAT, 
	claim INTEGER, 
	seal VARCHAR(32) NOT NULL, 
	CONSTRAINT uq_prediction_key UNIQUE ("key"), 
	CONSTRAINT fk_prediction_study FOREIGN KEY(study) REFERENCES study (number), 
	CONSTRAINT fk_prediction_person FOREIGN KEY(person) REFERENCES person (name), 
	CONSTRAINT fk_prediction_run FOREIGN KEY(run) REFERENCES run (number), 
	CONSTRAINT fk_prediction_claim FOREIGN KEY(claim) REFERENCES claim (number)
);
INSERT INTO "prediction" VALUES(1,'0000000000000000',1,'ada','it holds <b>0</b>',0.7,'{"method": "toy_leaf"}','{"field": "effects"}',1790000000.0,0,0,'','true',1,'{}','',NULL,1790000009.5,NULL,'7718df7092e04db1d58951e9c3329dcb');
INSERT INTO "prediction" VALUES(2,'0000000000000001',1,'ada','it holds <b>1</b>',0.2,'{"method": "toy_leaf"}',NULL,1790000001.0,1,1,'run 1','open',NULL,NULL,'',NULL,NULL,NULL,'cfc4894adf590cff53674d251acaba91');
CREATE TABLE process (
	id VARCHAR(32) NOT NULL, 
	host TEXT NOT NULL, 
	boot TEXT NOT NULL, 
	pid BIGINT NOT NULL, 
	started FLOAT NOT NULL, 
	heard_at FLOAT NOT NULL, 
	command TEXT NOT NULL, 
	versions TEXT NOT NULL, 
	"commit" TEXT NOT NULL, 
	diff VARCHAR(64), 
	CONSTRAINT pk_process PRIMARY KEY (id)
);
INSERT INTO "process" VALUES('53a92319f446ba654e7b544b21e1535c','somewhere','00000000',1234,1790000000.0,1.79584886765492868429e+09,'python toys.py','{"python": "3.11.7", "microtome": "0.1.0"}','',NULL);
CREATE TABLE run (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(16) NOT NULL, 
	parent INTEGER, 
	study INTEGER NOT NULL, 
	process VARCHAR(32) NOT NULL, 
	person VARCHAR(200) NOT NULL, 
	method VARCHAR(80) NOT NULL, 
	version VARCHAR(40) NOT NULL, 
	code VARCHAR(32) NOT NULL, 
	state VARCHAR(12) NOT NULL, 
	begun_at FLOAT NOT NULL, 
	ended_at FLOAT, 
	seconds FLOAT, 
	memory BIGINT, 
	times INTEGER NOT NULL, 
	question TEXT NOT NULL, 
	"query" VARCHAR(32) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	task VARCHAR(64) NOT NULL, 
	data VARCHAR(64) NOT NULL, 
	family VARCHAR(200) NOT NULL, 
	seed BIGINT, 
	arguments VARCHAR(64), 
	not_again TEXT NOT NULL, 
	called_from TEXT NOT NULL, 
	result VARCHAR(64), 
	verdict VARCHAR(40), 
	p FLOAT, 
	error TEXT NOT NULL, 
	CONSTRAINT uq_run_id UNIQUE (id), 
	CONSTRAINT fk_run_parent FOREIGN KEY(parent) REFERENCES run (number), 
	CONSTRAINT fk_run_study FOREIGN KEY(study) REFERENCES study (number), 
	CONSTRAINT fk_run_process FOREIGN KEY(process) REFERENCES process (id), 
	CONSTRAINT fk_run_person FOREIGN KEY(person) REFERENCES person (name)
);
INSERT INTO "run" VALUES(1,'eed2df49673aed5c',NULL,1,'53a92319f446ba654e7b544b21e1535c','ada','toy_leaf','1','','finished',1.79584886747540378574e+09,1.79584886751293349264e+09,4.74323449998337309807e-02,60452864,1,'{"data": "", "method": "toy_leaf", "model": "abcd", "numerics": {}, "parameters": {"fail": "", "value": 1}, "seed": null, "task": "", "version": "1"}','5a1cb49e4fd741f4f7a5d0f85e4a0ef4','abcd','','','',NULL,NULL,'','toys.py:3','4b3641268896af77ebe6bf0ec6fba548.json','unchecked',NULL,'');
INSERT INTO "run" VALUES(2,'723be1cde75e7b8f',NULL,1,'53a92319f446ba654e7b544b21e1535c','ada','toy_tree','1','','finished',1.79584886756802392009e+09,1.79584886761298131944e+09,4.49675590007245773449e-02,60583936,1,'{"data": "", "method": "toy_tree", "model": "dcba", "numerics": {}, "parameters": {"value": 1}, "seed": null, "task": "", "version": "1"}','9b5e50ea2face390d82aa496039b3818','dcba','','','',NULL,NULL,'','toys.py:3','1f7ba9fcd877483509b86b3159440143.json','unchecked',NULL,'');
INSERT INTO "run" VALUES(3,'73074644d381ae42',2,1,'53a92319f446ba654e7b544b21e1535c','ada','toy_leaf','1','','finished',1.79584886757061791421e+09,1.79584886758036375051e+09,9.75049299995589535683e-03,60583936,1,'{"data": "", "method": "toy_leaf", "model": "dcba", "numerics": {}, "parameters": {"fail": "", "value": 1}, "seed": null, "task": "", "version": "1"}','0da7f6ca85a619d7b61cf25e654bf82b','dcba','','','',NULL,NULL,'','toys.py:3','feaf6be7293c67ee79636cf6c3190b61.json','unchecked',NULL,'');
INSERT INTO "run" VALUES(4,'f5385c02016924c5',NULL,1,'53a92319f446ba654e7b544b21e1535c','ada','look','','','finished',1.7958488676514589786e+09,1.7958488676514589786e+09,0.0,NULL,1,'{"method": "look", "model": "abcd", "prompts": ["a"], "sites": ["L0.z"]}','d11755d58ec8047389a4050099933d25','abcd','','','',NULL,NULL,'a look, not a technique','toys.py:3',NULL,NULL,NULL,'');
INSERT INTO "run" VALUES(5,'5bd6fab0c0a955c8',NULL,1,'53a92319f446ba654e7b544b21e1535c','ada','toy_leaf','1','','failed',1.79584886765341925616e+09,1.79584886765415668481e+09,7.4530200072331354022e-04,60583936,1,'{"data": "", "method": "toy_leaf", "model": "abcd", "numerics": {}, "parameters": {"fail": "x", "value": 1}, "seed": null, "task": "", "version": "1"}','3509c06611a02504dacee5606c0d8702','abcd','','','',NULL,NULL,'','toys.py:3',NULL,NULL,NULL,'ValueError: x');
CREATE TABLE run_file (
	run INTEGER NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	name VARCHAR(300) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	CONSTRAINT pk_run_file PRIMARY KEY (run, role, name), 
	CONSTRAINT fk_run_file_run FOREIGN KEY(run) REFERENCES run (number)
);
INSERT INTO "run_file" VALUES(1,'result','arrays.safetensors','61dcc636bf888227c3cccb09490ee145.safetensors',96);
INSERT INTO "run_file" VALUES(1,'result','result.json','4b3641268896af77ebe6bf0ec6fba548.json',961);
INSERT INTO "run_file" VALUES(3,'result','arrays.safetensors','61dcc636bf888227c3cccb09490ee145.safetensors',96);
INSERT INTO "run_file" VALUES(3,'result','result.json','feaf6be7293c67ee79636cf6c3190b61.json',961);
INSERT INTO "run_file" VALUES(2,'result','children/000/arrays.safetensors','61dcc636bf888227c3cccb09490ee145.safetensors',96);
INSERT INTO "run_file" VALUES(2,'result','children/000/result.json','feaf6be7293c67ee79636cf6c3190b61.json',961);
INSERT INTO "run_file" VALUES(2,'result','result.json','1f7ba9fcd877483509b86b3159440143.json',737);
CREATE TABLE run_site (
	run INTEGER NOT NULL, 
	site VARCHAR(200) NOT NULL, 
	CONSTRAINT pk_run_site PRIMARY KEY (run, site), 
	CONSTRAINT fk_run_site_run FOREIGN KEY(run) REFERENCES run (number)
);
INSERT INTO "run_site" VALUES(2,'L0.z');
INSERT INTO "run_site" VALUES(4,'L0.z');
CREATE TABLE study (
	number INTEGER NOT NULL, 
	"key" VARCHAR(16) NOT NULL, 
	title TEXT NOT NULL, 
	person VARCHAR(200) NOT NULL, 
	opened_at FLOAT NOT NULL, 
	closed_at FLOAT, 
	CONSTRAINT pk_study PRIMARY KEY (number), 
	CONSTRAINT uq_study_key UNIQUE ("key"), 
	CONSTRAINT fk_study_person FOREIGN KEY(person) REFERENCES person (name)
);
INSERT INTO "study" VALUES(1,'a1e2fce449cd33d8','toys','ada',1.79584886741365957257e+09,1.79584886767965745931e+09);
CREATE INDEX ix_run_parent ON run (parent);
CREATE INDEX ix_run_model_family ON run (model, family);
CREATE INDEX ix_run_query ON run ("query");
CREATE INDEX ix_run_state ON run (state);
CREATE INDEX ix_run_study_parent ON run (study, parent, number);
CREATE INDEX ix_run_file_key ON run_file ("key");
CREATE INDEX ix_prediction_state ON prediction (state);
CREATE INDEX ix_evidence_claim ON evidence (claim);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('run',5);
INSERT INTO "sqlite_sequence" VALUES('prediction',2);
INSERT INTO "sqlite_sequence" VALUES('claim',1);
INSERT INTO "sqlite_sequence" VALUES('evidence',2);
COMMIT;
