// Checks the links between the repository's Markdown files: each file and each heading that a link names must exist. Also limits the
// length of ARCHITECTURE.md.
//
//	cd .ci/links && go run . ../..
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Limit of words of ARCHITECTURE.md: ten minutes of reading. Details belong in docs/internals.
const mapWords = 2000

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N}\- _]`)
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . REPOSITORY")
		os.Exit(2)
	}
	problems, files, err := check(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "links:", err)
		os.Exit(1)
	}
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, "links:", problem)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
	fmt.Printf("links: %d Markdown files, every link has a target\n", files)
}

// Returns the problems of all Markdown files below root, and the number of files.
func check(root string) (problems []string, files int, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "target" || entry.Name() == ".git" || entry.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		prose := fence.ReplaceAllString(string(text), "")
		for _, found := range link.FindAllStringSubmatch(prose, -1) {
			if problem := follow(root, path, found[1]); problem != "" {
				problems = append(problems, fmt.Sprintf("%s: %s: %s", path, found[1], problem))
			}
		}
		if words := len(strings.Fields(string(text))); entry.Name() == "ARCHITECTURE.md" && words > mapWords {
			problems = append(problems, fmt.Sprintf("%s has %d words, more than %d: move details to docs/internals", path, words, mapWords))
		}
		return nil
	})
	return problems, files, err
}

// Returns the problem of a link, or an empty text. Links to other sites and to pages of the hosting site are not followed.
func follow(root, from, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") || strings.HasPrefix(target, "../blob/") {
		return ""
	}
	file, anchor, _ := strings.Cut(target, "#")
	path := from
	if file != "" {
		path = filepath.Join(filepath.Dir(from), file)
	}
	if outside, err := filepath.Rel(root, path); err != nil || strings.HasPrefix(outside, "..") {
		return "is outside of the repository"
	}
	if _, err := os.Stat(path); err != nil {
		return "there is no such file"
	}
	if anchor == "" || filepath.Ext(path) != ".md" {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	for _, found := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
		if slug(found[1]) == anchor {
			return ""
		}
	}
	return "there is no such heading"
}

// Returns the anchor of a heading, as sites that show Markdown make it.
func slug(heading string) string {
	kept := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
	return strings.ReplaceAll(kept, " ", "-")
}
