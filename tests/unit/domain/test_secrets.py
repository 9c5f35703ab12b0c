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
