package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeadLinksAreFound(t *testing.T) {
	root := t.TempDir()
	files := map[string]string{
		"README.md": "# One `two` three?\n[a](docs/a.md#b-c) [me](#one-two-three) [site](https://example.org/x#y)\n" +
			"[gone](docs/gone.md) [no](docs/a.md#no) [out](../x.md)\n```\n[not](a-link.md)\n```\n",
		"docs/a.md":       "## B, c\n",
		"ARCHITECTURE.md": strings.Repeat("word ", mapWords+1),
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	problems, count, err := check(root)
	if err != nil || count != 3 {
		t.Fatal(count, err)
	}
	all := strings.Join(problems, "\n")
	for _, wanted := range []string{"docs/gone.md: there is no such file", "docs/a.md#no: there is no such heading", "outside", "2001 words"} {
		if !strings.Contains(all, wanted) {
			t.Errorf("%q is missing in:\n%s", wanted, all)
		}
	}
	if len(problems) != 4 {
		t.Errorf("4 problems expected:\n%s", all)
	}
}
