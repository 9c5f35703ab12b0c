"""What looks like a secret, and what does not."""

import pytest

from mlxk.domain.publication import judge_name, judge_text

LONG = "aB3dE5gH7j" * 6


@pytest.mark.parametrize(
    "path",
    [".env", "sub/.env.local", "server.pem", "ID_RSA", "id_ed25519.pub", ".netrc", "token", "sub/credentials.json",
     ".aws/config", "home/.ssh/known_hosts", ".docker/config.json", "x.key"],
)  # fmt: skip
def test_names_that_hold_secrets_are_found(path: str) -> None:
    assert judge_name(path) is not None


@pytest.mark.parametrize(
    "path",
    ["config.json", "tokenizer.json", "special_tokens_map.json", "tokens.txt", "environment.md", "keys.json",
     "README.md", "docker/config.json", "model.safetensors", "credentials_guide.md"],
)  # fmt: skip
def test_names_of_models_files_are_not(path: str) -> None:
    assert judge_name(path) is None


@pytest.mark.parametrize(
    "path",
    ["key.p12", "sub/key.PFX", "store.jks", "pass.kdbx", "putty.ppk", "id_dsa", "id_ecdsa.pub", "_netrc", ".npmrc",
     ".pypirc", ".htpasswd", ".git-credentials", "credentials", "client_secret_1.json", "service_account-x.json",
     "stored_tokens", "home/.aws/credentials", ".kube/config", "a/.kube/config", ".bash_history", ".psql_history",
     ".histfile", ".history", ".lesshst", ".rhistory", ".viminfo", "chat_history.jsonl", "chat-history-1.txt",
     "bash_history.txt", "zsh_history", "fish_history", "shell_history.log", "python_history",
     "ConsoleHost_history.txt"],
)  # fmt: skip
def test_keys_passwords_and_histories_of_every_program_are_found(path: str) -> None:
    assert judge_name(path) is not None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ASIA" + "ABCDEFGH12345678", "an AWS access key"),
        *((f"gh{letter}_{LONG[:36]}", "a GitHub token") for letter in "pousr"),
        *((f"xox{letter}-{LONG[:24]}", "a Slack token") for letter in "abprs"),
        (f"SG.{LONG[:22]}.{LONG[:43]}", "an API key"),
        *((f"{letter}k_live_{LONG[:24]}", "an API key") for letter in "rs"),
        (f"ya29.{LONG[:30]}", "a Google access token"),
        (f"AccountKey={LONG}==", "an Azure account key"),
        (f"eyJ{LONG[:20]}.eyJ{LONG[:20]}.{LONG[:20]}", "a JSON web token"),
        (f"Authorization: Bearer {LONG[:20]}", "a bearer token"),
        (f"AUTHORIZATION: BEARER {LONG[:20]}", "a bearer token"),
        ("postgres://ann:hunter2@db.example:5432/x", "a password in an address"),
        (f"pypi-{LONG}", "a package registry token"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
    ],
)
def test_secrets_of_every_kind_are_found(text: str, kind: str) -> None:
    assert [finding.kind for finding in judge_text("notes.txt", f"x = '{text}'", ())] == [kind]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"hf_{LONG[:34]}", "a Hugging Face token"),
        (f'{{"key": "sk-proj-{LONG[:48]}"}}', "an API key"),
        ("AKIA" + "ABCDEFGH12345678", "an AWS access key"),
        (f"ghp_{LONG[:36]}", "a GitHub token"),
        (f"github_pat_{LONG[:59]}", "a GitHub token"),
        (f"glpat-{LONG[:20]}", "a GitLab token"),
        (f"AIza{LONG[:35]}", "a Google API key"),
        (f"xoxb-{LONG[:24]}", "a Slack token"),
        (f"npm_{LONG[:36]}", "a package registry token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("/home/ada/models/x", "a path of this machine"),
        ('{"path": "\\/home\\/ada"}', "a path of this machine"),
    ],
)
def test_texts_that_look_like_secrets_are_found_with_their_line(text: str, kind: str) -> None:
    findings = judge_text("notes.txt", f"first\n\n  {text} \n", ("/home/ada",))
    assert [(finding.kind, finding.line) for finding in findings] == [(kind, 3)]
    assert text not in str(findings[0])


@pytest.mark.parametrize(
    "text",
    ["hf_model", "hf_hub_download(repo_id)", "sk-learn", "task-oriented-" + "a" * 40, "/home/adam/x", "/srv/home/ada",
     "AKIA", "BEGIN PUBLIC KEY", "ghp_short", "x" * 200],
)  # fmt: skip
def test_texts_that_do_not_are_not(text: str) -> None:
    assert judge_text("notes.txt", text, ("/home/ada", "/", "/x")) == []


def test_a_kind_is_reported_once_a_file() -> None:
    text = f"hf_{LONG[:34]}\nhf_{LONG[1:35]}\n/home/ada\n/home/ada/work"
    findings = judge_text("a", text, ("/home/ada", "/home/ada/work"))
    assert [(finding.kind, finding.line) for finding in findings] == [
        ("a Hugging Face token", 1),
        ("a path of this machine", 3),
        ("a path of this machine", 4),
    ]
